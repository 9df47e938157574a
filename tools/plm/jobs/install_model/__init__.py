"""plm_install_model: models for a server's table, brought in whole, compared, proved and recorded."""
