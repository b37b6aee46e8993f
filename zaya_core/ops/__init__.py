"""Pure tensor functions of the network, the losses and the samplers; testable with bare tensors."""
