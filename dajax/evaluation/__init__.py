"""How good depth maps are: metrics, and how relative maps are aligned for them."""
