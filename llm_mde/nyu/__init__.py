"""Raw NYU Depth V2: Kinect dumps to registered frames, and generated scenes; no torch."""
