"""Shows the results of a run: HTML report, plots and console."""
