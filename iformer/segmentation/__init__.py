"""Semantic segmentation with Semantic FPN (Table 4 of the paper) or UPerNet."""
