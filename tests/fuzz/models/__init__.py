# SPDX-License-Identifier: MIT
"""Models of the kernel that agree with every recorded trace."""
