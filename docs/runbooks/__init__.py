"The runbooks, packaged as mlops_nb.runbooks so that `mlops-nb init` finds them in a wheel too."
