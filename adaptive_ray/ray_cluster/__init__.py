"""Starting or joining a Ray cluster, and placing workers on its nodes."""
