"""Steps to what people see: JSON frames for the browser, plotly figures, the verdict in words.

Pure functions and folds over Steps. No gradio here; plotly in `figures` only.
"""
