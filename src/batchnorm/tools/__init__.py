"""The commands, and what they stand on: tables and arrays in files, explanations, experiments, timings."""
