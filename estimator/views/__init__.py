"""What is shown of many answers at once: classes, scenarios, lists, ladders, families of kernels."""
