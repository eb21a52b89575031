"""A run's results for people: the HTML page, its pictures and the console."""
