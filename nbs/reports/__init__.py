"The report notebooks, packaged as mlops_nb.report_notebooks so that `mlops-nb init` finds them in a wheel too."
