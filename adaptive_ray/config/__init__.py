"""An experiment's configuration: settings of its parts, read from YAML, and the plan that follows from them."""
