# SPDX-License-Identifier: Apache-2.0
"""Make weights absorb quantization error: in closed form, and by gradients (needs torch)."""
