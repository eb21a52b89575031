"""One run of the product, from its configuration to its results."""
