"""How fast: what scripts/bench measures, one measurement a module, and the tables of docs/benchmarks.md."""
