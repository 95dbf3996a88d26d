"""Object detection and instance segmentation with Mask R-CNN (Table 3 of the paper)."""
