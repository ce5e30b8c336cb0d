"""How a model is trained: suite -> plan -> count -> train -> record."""
