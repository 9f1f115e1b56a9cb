"""From depth maps to points in space, and from relative depth to metres."""
