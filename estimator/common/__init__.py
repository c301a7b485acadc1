"""What all rooms use: array types, mixtures of normals, numbers in words, rules of status and class, scores."""
