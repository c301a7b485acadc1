"""What the gain of one pair of losses rests on: slopes of public ladders, and rules for what is given."""
