"""Read a network from the spectrum of its gradient: frequency response, Maximum Gain, and what its curve says.

gains = sk.diagnose.GainCurve(image)
for epoch in range(epochs):
    train(model)
    gains(model)                        # one gradient of one image
print(gains.label())
"""

from spectralkernels.diagnose.curve import Curve, GainCurve, Label, label_curve
from spectralkernels.diagnose.response import FrequencyResponse, Impulse, frequency_response, maximum_gain

__all__ = [
    "Curve",
    "FrequencyResponse",
    "GainCurve",
    "Impulse",
    "Label",
    "frequency_response",
    "label_curve",
    "maximum_gain",
]
