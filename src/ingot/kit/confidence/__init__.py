"""How sure a model is and how often it is right: scaling its confidence, measuring the error that is left."""
