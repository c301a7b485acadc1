"""Evidence -> CEG(C): contrasts, studies, prior, combinations, the answer in every currency."""
