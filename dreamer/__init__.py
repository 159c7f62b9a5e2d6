"""DreamerV3: learn a world model, and a policy inside it."""
