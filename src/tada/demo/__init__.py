"""The page of ``tada demo``: videos and camera in a browser. Only ``looks`` and ``server`` need gradio."""
