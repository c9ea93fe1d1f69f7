"""The terms of the objective, and the candidates that a positive is compared with."""
