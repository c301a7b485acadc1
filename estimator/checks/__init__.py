"""Are the intervals honest? One study, one stack or the top of a ladder is hidden, predicted and scored."""
