"""Steps to what people see: JSON frames for the browser, plotly figures, the verdict in words.

Pure functions and folds over Steps; `record` is a command, and with `inspect` the only room that meets
a model. No gradio here; plotly in `figures`, `results` and `training` only.
"""
