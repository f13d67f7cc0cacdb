"""May this study run here, now?"""
