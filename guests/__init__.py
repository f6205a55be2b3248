"""One small guest a folder: source, built bytes and what it shows."""
