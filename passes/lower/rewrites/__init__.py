# SPDX-License-Identifier: Apache-2.0
"""Float rewrites that lowering makes whatever the codes: the same function, only sooner computed."""
