# SPDX-License-Identifier: MIT
"""Models of the kernel that agree with every recorded trace, but for two things: what it warns of
has other names here, and which device of a SCSI host has its turn first is specified nowhere."""
