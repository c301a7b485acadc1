"""Tables as people have them: columns by meaning, units, conventions, repeated runs, yardsticks, gains."""
