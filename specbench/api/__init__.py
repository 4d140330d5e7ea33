"""What `import specbench` offers: targets and methods for a notebook, runs, and results as DataFrames (docs/python.md)."""
