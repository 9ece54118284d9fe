"""Labels that are not classes: negative numbers, the same in loader, losses and queue."""

UNREADABLE = -1  # a damaged record, if damage is tolerated; it takes no part in the step
UNLABELLED = -2  # image 0 of the unlabelled set; image i has UNLABELLED - i, which no other image and no class has
