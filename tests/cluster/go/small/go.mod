module merlab/cluster/small

go 1.25
