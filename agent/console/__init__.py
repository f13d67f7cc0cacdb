"""The page on which a hospital sees and steers its box."""
