"""Where block diffusion pays: a model's cost on a device, from first principles and by measurement.

All but `machine`, `measure` and `training` are plain arithmetic and import no torch. It refuses to know files and text.
"""
