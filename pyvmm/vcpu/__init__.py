"""The exit loop, and what pyvmm knows of a CPU."""
