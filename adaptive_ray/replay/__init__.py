"""What a policy would have chosen, and what it would have cost: decisions replayed on recorded runs."""
