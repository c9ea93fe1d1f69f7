"""Layers of the towers, and TensorFlow ops that layers and losses share."""
