"""From a command line to ranks: plan devices, start them under torch elastic, run the script in each.

The launcher's side: options → hardware → plan → elastic → outcome. The rank's side: worker.
"""
