"""Object detection and instance segmentation: Mask R-CNN (Table 3)."""
