"""Many runs: the plan of a ladder, processes or a Ray cluster that work it off, how long it takes."""
