"""How good a model is: problems, their scorers, the sandbox that generated programs run in, and the statistics of the figures.

It refuses to know samplers, engines and where completions are kept: texts in, scores out.
"""
