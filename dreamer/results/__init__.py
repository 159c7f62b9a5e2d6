"""What runs have shown: their curves beside the published ones, and lists of runs that are worked through."""
