"""Generated furnished rooms: solids, furniture, materials, light and the cameras that see them."""
