// NiiVue imports zarrita to read OME-Zarr over the network. The review page passes arrays, so zarrita is not bundled.
export const root = undefined;
export const FetchStore = undefined;
export const open = undefined;
export const get = undefined;
