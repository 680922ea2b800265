"""Random crops of clean images.

sources.py     the interface, its configuration, and its two implementations:
crops.py       crops of images held in memory
loader.py      crops decoded by NVIDIA DALI as needed: index.py finds the images, plan.py chooses the crops of a step,
               dali_crops.py decodes them
"""
