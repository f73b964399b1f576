"""What the machine does: files that are whole or not there, what a path leads to, signals, faults of disks, scratch."""
