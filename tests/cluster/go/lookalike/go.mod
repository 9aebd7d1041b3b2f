module merlab/cluster/lookalike

go 1.25
