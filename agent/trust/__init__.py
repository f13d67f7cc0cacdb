"""What the box believes about others: studies, rosters, releases."""
